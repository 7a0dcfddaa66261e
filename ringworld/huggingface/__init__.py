"""Models in and out of Hugging Face folders: what others have trained comes in, and what was trained here goes out."""
