"""The raw layout of each data set, one file each: real file names, columns and encodings, and their irregularities.

A file has `write_study(job, study)`, which writes the images of a study and gives its rows for each table, and
`write_tables(root, tables)`, which writes what the data set has once.
"""
