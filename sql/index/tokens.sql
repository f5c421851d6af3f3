-- grain: one row per sequence of one corpus part, in the order of their ids, in which they are stored
select sequence_id, token_ids
from part_sequences
