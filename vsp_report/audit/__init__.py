"""Audit: what recordings come to, held against what cases expect. Reads no model; writes what machines read.

words       figures in few digits
sources     what a recording was made of, beside what is there now
verdicts    a recording and its case's expectations -> one verdict, with every comparison behind it
baselines   figures kept beside the cases, which later runs may not drift from
account     an audit as a whole: its verdicts, what they come to, and the exit code
history     one line for each audit, in the site
junit sarif github terminal     the same account for those who read it
datasets    many pictures and questions, in pairs that must both be right
"""
