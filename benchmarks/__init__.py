"""Speed, as ratios to the matrix-product rate of the same machine: `make bench`, or each module separately."""
