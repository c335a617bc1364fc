"""Side-by-side measurements; ``make bench`` runs them all and keeps the results in bench/results/."""
