"""What one does with a trained generator: pictures, figures, videos, projection."""
