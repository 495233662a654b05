"""The paper's Tables 2, 3 and 4 beside ours: detection and instance segmentation on COCO."""
