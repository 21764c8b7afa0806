"""What is stored of points, trials, rounds, curves: read and written row by row, without deciding who may."""
