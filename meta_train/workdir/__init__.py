"""The files that a run writes to its workdir, and reads to go on."""
