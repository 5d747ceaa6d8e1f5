"""The command line: ``journey info | demo | featurize | record | score | transitions | influence | report | inspect``.

In reading order: ``main`` (subcommands and errors), ``arguments`` (those that several share), ``inputs`` (what they
stand for), ``outputs`` (where results go), then a file for each subcommand.
"""
