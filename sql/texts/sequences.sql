-- grain: one row per sequence of the corpus, with its text
-- not the tokens: what the document says between the sequence's first and last character
select s.sequence_id, substring(d.text, (s.start_char + 1)::bigint, (s.end_char - s.start_char)::bigint) as text
from sequences s
join documents d on d.document_id = s.document_id
where list_contains($parts, s.part)
order by s.sequence_id
