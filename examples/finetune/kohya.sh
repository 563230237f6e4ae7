#!/bin/sh
# Follow a LoRA training of kohya-ss from a second terminal, and measure every checkpoint as it is written:
#
#     sh kohya.sh MODEL PICTURES OUTPUT COURSE [OPTIONS OF `cryptomnesia finetune`]
#
# MODEL is what kohya has as --pretrained_model_name_or_path, PICTURES its --train_data_dir, the folder that holds
# folders such as `10_sks dog`, and OUTPUT its --output_dir. Have it save often: --save_every_n_steps=250
# --save_model_as=safetensors. Captions are read as kohya reads them: from a text file beside the picture, else from the
# name of the folder.
#
# The measurement has the lowest priority. It ends by itself when kohya has written the last file, and can be stopped at
# any time: the same command goes on. COURSE/index.html has the curve after every checkpoint. On the GPU of the training
# it takes memory for two models; `--device cpu` or `--device cuda:1` puts it elsewhere.
set -eu
model=$1 pictures=$2 output=$3 course=$4
shift 4
exec nice -n 19 cryptomnesia finetune "$output" --base "$model" --data "$pictures" --watch -o "$course" "$@"
