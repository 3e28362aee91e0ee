"""Why a record cannot be an example: fixed phrases, by which rejected records are counted."""

from __future__ import annotations

# Of the file.
WRONG_JSON = "wrong JSON"
WRONG_TABLE = "wrong number of columns"
NOT_UTF8 = "not UTF-8"
TOO_LARGE = "record too large"
CANNOT_READ = "record cannot be read"
TWO_MEMBERS = "two members of one name"
ARCHIVE_ESCAPE = "path leaves the archive"
FORM = "record of another form"

# Of the pictures.
NO_PICTURE = "no picture"
PICTURE_UNREADABLE = "picture cannot be read"
PICTURE_MISSING = "picture is missing"
PATH_ESCAPE = "path leaves image_root"
WEB_ADDRESS = "picture is a web address"
VIDEO = "video or sound"
PICTURE_IN_TEXT = "picture in a text source"
PICTURE_IN_ANSWER = "picture in an answer"
PICTURE_IN_PROMPT = "picture in a prompt to draw"
MORE_MARKERS = "more <image> than pictures"
FEWER_MARKERS = "fewer <image> than pictures"

# Of the words.
EMPTY_TEXT = "empty text"
EMPTY_QUESTION = "empty question"
EMPTY_ANSWER = "empty answer"
NO_CAPTION = "no caption"
NO_CLASS = "no class name"
UNKNOWN_ROLE = "unknown role"
TURN_ORDER = "odd turn order"
NOT_LEARNT = "answer that is not learnt"
LOW_RATING = "rating below min_rating"

# Of the codes.
NO_CODES = "no codes"
