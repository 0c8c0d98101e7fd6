"""The commands `twofold balance` and `twofold balance-ctl`."""
