-- grain: one row per query of `asked`, with the words of its prompt and answer, repeated ones repeatedly
select query_id, words_of(completed) as words
from asked
order by query_id
