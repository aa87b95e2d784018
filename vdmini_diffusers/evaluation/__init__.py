"""How good a video is: distances to a real continuation, and how much of its motion is there."""
