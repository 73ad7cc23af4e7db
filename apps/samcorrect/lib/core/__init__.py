"""Pure algorithms: arrays in, arrays out; no disk, network, clock or host."""
