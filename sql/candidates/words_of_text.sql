-- grain: one row: the words of a text, repeated ones repeatedly
select words_of($text) as words
