"""The subcommands of the command line, one per file: ``add`` declares the arguments, ``_run`` does the job."""
