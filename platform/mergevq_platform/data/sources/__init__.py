"""Images that users bring, and what packing understands of them."""
