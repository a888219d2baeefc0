"""Video files: mp4 with its settings record, contact sheets, animated previews.

Nothing here imports the engine: frames are ``[n, H, W, 3]`` uint8 RGB arrays, whoever made them.
"""
