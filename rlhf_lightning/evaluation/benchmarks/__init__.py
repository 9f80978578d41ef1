"""The automatic suite of the paper (section 4.2, appendix D) on lm-evaluation-harness, the extra `eval`."""
