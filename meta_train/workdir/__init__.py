"""Files of a run's workdir, which a resumed run reads again."""
