//! IIR-SNN: train a spiking network at T=5 and shrink it stage by stage to one timestep.
