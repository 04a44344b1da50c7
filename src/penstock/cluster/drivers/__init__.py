"""How processes are started, watched and stopped, one file per place they run in."""
