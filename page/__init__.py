"""The page in the browser: answers.py and results.py know nothing of Gradio, layout.py and server.py are the page."""
