"""The paper's Table 1: its rows trained one after another, and shown beside the paper's."""
