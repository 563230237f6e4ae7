"""The proving grounds, one file each, with an instance of `Ground` called `GROUND`."""
