"""Facts to trace and edit: sets, requests, texts, and subjects that only sound like another."""
