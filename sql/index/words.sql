-- grain: one row per sequence of one corpus part, in the order of their ids
-- not for sequences that cross documents: their text is more than one document's
select s.sequence_id, words_of(substring(d.text, (s.start_char + 1)::bigint, (s.end_char - s.start_char)::bigint)) as words
from part_sequences s
join part_documents d using (document_id)
order by s.sequence_id
