"""A consumer of `topic_main` that keeps tables of patients, studies, series and instances up to date."""
