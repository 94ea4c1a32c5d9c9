"""The public functions for notebooks and scripts, with arguments in the order people expect.

`segcore.<name>` is where users take them from. Commands and packages of segcore use the functions
behind them.
"""
