"""The page at `/ui`, for people: drawing and chatting in a browser, by the engine that the API uses.

`draw` and `chat` turn events of jobs into views, and know no Gradio. `layout`, `draw_tab` and `chat_tab` put these
on a page of Gradio; only they import it. `mounting` makes that part of the application, behind `guard`.
"""
