"""Why a result warns or fails."""
