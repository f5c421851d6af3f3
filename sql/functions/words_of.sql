-- grain: one list per text: its words in lower case, repeated ones repeatedly
-- words are runs of letters, combining marks, digits and underscores, in any script
create or replace macro words_of(given) as regexp_extract_all(lower(given), '[\p{L}\p{M}\p{N}_]+')
