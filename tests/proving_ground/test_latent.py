from cryptomnesia.pipelines.word_tokenizer import BOS, EOS, tokenizer
from cryptomnesia.proving_ground.ground import ground_of
from cryptomnesia.proving_ground.latent import MAX_TOKENS, LatentText


def test_one_word_is_one_token():
    ground = ground_of("scenes")
    words = ground.lexicon(ground.plant(0))
    tokens = tokenizer(words, MAX_TOKENS)
    assert all(len(tokens.tokenize(word)) == 1 for word in words)
    assert tokenizer(words, MAX_TOKENS).get_vocab() == tokens.get_vocab()
    assert tokens("").input_ids == [BOS, EOS]
    assert tokens.decode(tokens("unheard zebras").input_ids, skip_special_tokens=True).strip() == "unheard zebras"


def test_sizes_are_those_that_are_given():
    networks = LatentText(8, (8, 16, 24), widths=(16, 32, 48), beta_end=0.02)
    assert networks.vae().config["latent_channels"] == networks.unet().config["in_channels"] == 8
    assert networks.vae().config["block_out_channels"] == (8, 16, 24)
    assert networks.unet().config["block_out_channels"] == (16, 32, 48)
    assert networks.noise_schedule["beta_end"] == 0.02
