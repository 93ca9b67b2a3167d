"""What a finished run leaves for people: summary.json, report.html, and a few lines on the terminal."""
