"""Where the two pipelines meet: intent (config to kernel) and observation (kernel to findings)."""
