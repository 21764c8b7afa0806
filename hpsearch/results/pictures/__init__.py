"""The numbers behind the pictures of a trial: its kept filters, and its judgement of the validation images.

What a worker has stored comes in, and the validation images of this machine; arrays go out. The report shows
`PictureOverview` (`overview`) with report/templates/sections/pictures.html.j2. Nothing here trains, and nothing reads
test images.
Source: docs/sources.md, section 9.
"""
