"""The built-in plugins. They come through the same door as everybody else's."""
