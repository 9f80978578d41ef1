"""The paper's care with data: curation of prompts, demonstrations and rankings, and the data card."""
