"""Detection and instance segmentation on COCO (paper, §4.2, Tables 2 to 4)."""
