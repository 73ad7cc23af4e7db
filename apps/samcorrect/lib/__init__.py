"""The rooms of samcorrect; see the map in the README. Modules import each other as `samcorrect.lib...` only."""
