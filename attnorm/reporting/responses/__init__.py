"""What happens inside a trained network: filter responses (paper, Figure 2), mixture weights λ."""
