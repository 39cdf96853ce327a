"""What is shown: drawings, curves, and the frame of HTML pages."""
