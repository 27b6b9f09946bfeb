"""Speed of a model on this machine, run by run in turn with another program if wanted.

case.py     what is measured, and what came out
measure.py  the order of the runs
process.py  one engine in a process of its own; worker.py is that process
native.py   our session, rival.py llama.cpp: the engines
report.py   table, JSON, CSV; plot.py the drawing
"""
