"""What every room uses: files, text, randomness, memory, the device, progress."""
