"""Prompts: texts of any kind, and files and folders of them. Importing this room loads nothing heavy."""

from cryptomnesia.prompts.reading import captions_of as captions_of
from cryptomnesia.prompts.reading import read_prompts as read_prompts
