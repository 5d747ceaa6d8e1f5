"""The command line: ``journey info``, ``demo``, ``fit``, ``featurize``, ``record``, ``score`` and the other verbs.

In reading order: ``main`` (subcommands and errors), ``arguments`` (those that several share), ``inputs`` (what they
stand for), ``outputs`` (where results go), then a file for each subcommand.
"""
