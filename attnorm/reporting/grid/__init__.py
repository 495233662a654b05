"""Any grid of runs: trained, and compared with batch norm under the same recipe."""
