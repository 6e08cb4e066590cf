"""Pictures: what training did. They need matplotlib, which is imported by the first one."""

from minigrad.viz.gradients import GradientRecorder
from minigrad.viz.plots import plot_gradients, plot_history

__all__ = ["GradientRecorder", "plot_gradients", "plot_history"]
