"""Edits of a running model, as data. They apply in the order given, in prefill and decoding alike."""

from headscope.attention.edits.attention import AttentionEdit as AttentionEdit
from headscope.attention.edits.attention import Group as Group
from headscope.attention.edits.attention import KnockOut as KnockOut
from headscope.attention.edits.attention import LogitEdit as LogitEdit
from headscope.attention.edits.attention import RowsEdit as RowsEdit
from headscope.attention.edits.finders import ColumnSinks as ColumnSinks
from headscope.attention.edits.finders import ResidualPeaks as ResidualPeaks
from headscope.attention.edits.heads import HeadEdit as HeadEdit
from headscope.attention.edits.neurons import NeuronEdit as NeuronEdit
from headscope.attention.edits.residual import ResidualEdit as ResidualEdit
from headscope.kernels.rules import Floor as Floor
from headscope.kernels.rules import Redistribute as Redistribute
from headscope.kernels.rules import Scale as Scale
from headscope.kernels.rules import Transfer as Transfer

Edit = AttentionEdit | KnockOut | LogitEdit | HeadEdit | NeuronEdit | ResidualEdit
