"""The proxy and HAProxy, side by side."""
